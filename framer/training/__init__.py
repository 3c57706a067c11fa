"""The DeepSpeed trainer.

* The loop: ``command``, ``trainer`` (set-up, steps, saving, finishing), ``forward``, ``step_losses``, ``schedule``,
  ``batches``, ``checks``.
* The engine: ``engine`` (DeepSpeed's configuration, its step, reading weights), ``partitioning`` (ZeRO 3's model),
  ``activation_checkpointing``, ``ema``, ``effective_config``.
* Ranks: ``rendezvous`` (who they are), ``ranks`` (collectives), ``watchdog`` (one that dies ends the others).
* Checkpoints: ``checkpoint`` (save, load), ``checkpoint_writer`` (the bytes, perhaps in the background), ``manifest``
  (hashes), ``checkpoint_folder`` (names), ``checkpoint_choice`` (which one is whole), ``trainer_state`` (of which run
  it is), ``shares`` and ``universal`` (another number of ranks), ``preemption``, ``export``, ``export_checkpoint``.
* Health: ``health`` and ``skipping`` (numbers that are not finite), ``stall``, ``watch``, ``hardware``.
* What one sees: ``metrics``, ``trackers``, ``evaluation``, ``report``, ``run_folder``, ``dry_run``.
"""
