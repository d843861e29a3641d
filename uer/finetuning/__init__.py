"""Fine-tuning of a finished BERT: sentence classification (GLUE) and question answering (SQuAD)."""
