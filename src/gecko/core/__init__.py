"""What every room uses: records, formats, errors, text, files."""
