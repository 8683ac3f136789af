"""Tables as sources: CSV, JSON Lines, Parquet and Arrow files, and their cells."""
