"""What a recipe would train and need, computed without starting it."""
