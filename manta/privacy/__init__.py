"""What people may ask of whoever keeps their data: erasure with a receipt, a copy of it all."""
