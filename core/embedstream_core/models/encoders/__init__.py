"""The encoders that have a name: architecture, published weights and preprocessing."""
