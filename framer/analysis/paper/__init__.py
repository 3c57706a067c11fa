"""The paper's figures, measured on checkpoints: what ``framer analyze`` draws."""
