"""What several test modules use: networks, problems, fabricated segments, servers."""
