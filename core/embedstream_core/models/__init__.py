"""What an encoder is, and where its network, weights and preprocessing come from."""
