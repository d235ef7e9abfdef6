"""The formats of images: what the header of a file says, before any pixel is decoded."""
