"""What a data set may look like, one form a file. Each says whether it knows a folder, and lists its rows."""
