"""One rule a file or folder: each looks and returns findings; it never warns or raises."""
