"""What every room uses: errors, cancellation, durable files, texts of times and sizes. Imports nothing of ours."""
