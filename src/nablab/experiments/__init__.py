"""One file, one question. The catalogue scans this folder; there is no list to edit."""
