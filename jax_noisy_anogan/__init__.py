"""Noisy-AnoGAN: anomaly detection with a progressive GAN that unlearns known defects."""
