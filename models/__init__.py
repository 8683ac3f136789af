"""Networks and their mathematics: no loop, no data source, no rank."""
