"""Why gradients of some back ends cannot be combined: one text each, for the Surgeon and for the trainer."""

DEEPSPEED = (
    "DeepSpeed keeps gradients of its own and steps the optimizer inside backward, so domain gradients cannot be "
    "combined before the step. Use FSDP2 (torch.distributed.fsdp.fully_shard; fsdp_version: 2 in accelerate) or DDP."
)
FSDP1 = (
    "FSDP1 (FullyShardedDataParallel) keeps flat parameters, cut anywhere, so that a rank's .grad is a piece of no "
    "module's gradient. Use FSDP2 (torch.distributed.fsdp.fully_shard; fsdp_version: 2 in accelerate)."
)
