"""The command line: words and pictures for people."""
