"""The pages, one blueprint a noun."""
