"""Kafka: topics, messages in, and a broker for development."""
