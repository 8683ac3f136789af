"""What conditions read of captions and images through frozen encoders."""
