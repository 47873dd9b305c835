"""What dinomed adds around monai.bundle."""
