"""What `tools/pretrain_folder.py` is made of: pictures, settings, the config, a trial."""
