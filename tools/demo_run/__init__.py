"""The demo's machinery: running steps, reading their results, drawing them."""
