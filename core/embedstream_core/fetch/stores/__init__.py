"""Object stores: from a reference to the bytes of an object."""
