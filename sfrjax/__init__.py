"""sfrjax."""
