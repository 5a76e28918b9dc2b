"""What is right and wrong about a response: verdicts from rules, or from a model behind an endpoint."""
