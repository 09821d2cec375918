"""What a server and a demo of a model share: clients' bytes under limits, one queue, answers as JSON."""
