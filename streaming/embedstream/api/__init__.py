"""The APIs for batch users: DataFrame, columns, Spark ML, SQL, MLflow."""
