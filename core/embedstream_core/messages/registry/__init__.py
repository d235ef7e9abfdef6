"""Values in the wire format of a schema registry, read with the schema that wrote them."""
