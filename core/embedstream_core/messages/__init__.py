"""From the value of a Kafka message to an item."""
