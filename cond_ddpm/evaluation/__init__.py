"""How good samples are, measured on a pipeline folder or on samples made by any software.

evaluate.py          `evaluate`: from a pipeline or samples to results.json
real_images.py       the real images that samples are compared with, and those held out as the reference
external_samples.py  samples made elsewhere -> images with the data set's class ids
classifier.py        two small classifiers, trained on the real images
classifier_networks.py  their networks
augmentation.py      the images that they are trained on
trust.py             the confidence interval of a classifier's accuracy, and below which it gives no figures
usefulness.py        classifiers trained on samples, on real images and on both, tested on held-out real images
guidance.py          the guidance scale that a trained pipeline gets as its default
extractors.py        images -> features: the classifier, Inception, DINOv2 or EfficientNet
statistics.py        features -> statistics, folded in batch by batch
copies.py            how many samples are nearer to a training image than 99% of real images are, and the worst pairs
metrics.py           statistics -> metrics; a new metric is a function here and a line in `compute_metrics`
report.py            metrics -> results.json, its pictures and the printed summary
"""
