"""embedstream on Spark: a Kafka topic of images becomes a Delta table of embeddings."""
