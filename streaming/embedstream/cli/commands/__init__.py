"""The commands and their options; nothing that takes long to import."""
