"""Phase diagrams over two parameters."""
