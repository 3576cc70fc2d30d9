"""The paper's tables and figures: one module per experiment, all on the same cells and tables."""
