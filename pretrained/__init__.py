"""Installed as `cond_ddpm.pretrained_data`: trained models, and the classifiers that judge CIFAR-10."""
