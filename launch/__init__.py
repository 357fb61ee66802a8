"""bge-launch: a FlagEmbedding training file goes in, a checked torchrun command and a tuned model come out."""
