"""Training in three modes: `instant`, `finetune`, `scratch`; beside them what they share, in folders their parts."""
