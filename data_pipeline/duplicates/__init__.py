"""Finding images that occur more than once in a set, as they are or nearly."""
