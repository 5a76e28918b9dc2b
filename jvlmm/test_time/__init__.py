"""What a trained model does with more computation when it answers: decode-time controllers."""
