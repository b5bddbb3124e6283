"""HTTP/1.1 servers and their exchanges, which know nothing of what is served."""
