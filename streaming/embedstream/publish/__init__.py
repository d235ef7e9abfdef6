"""The outcomes of the table as messages of a Kafka topic."""
