"""What single layers of a frozen language model hold and can do."""
