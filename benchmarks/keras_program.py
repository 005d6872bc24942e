"""Keras' Barlow Twins example (A. Eranti, 2021) as a program of Keras 3 with TensorFlow: own code, to its definition.

Per image, in tf.data: a square of 24 to 31 pixels resized to 32, a flip drawn twice, colour jitter, a 3 x 3 blur of one sigma
a run, gray, a solarization that never happens, a clip. Then ResNet-34 with a 7 x 7 stem, a projector of 5000-5000-5000 with
biases, the loss with weight 0.005, LAMB. float32, as published. Nothing here imports Diptych.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

BLOCKS, WIDTH, SIDE = (3, 4, 6, 3), 5000, 32


def keras_step(
    images: np.ndarray, batch: int, threads: int, jit: bool, blocks=BLOCKS, width: int = WIDTH
) -> Callable[[], float]:
    """A function that takes one training step of `batch` of the images (N, 32, 32, 3) uint8 and returns its loss.

    jit: compile the step by XLA, as the example asks for; TensorFlow's own kernels otherwise.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # told before TensorFlow is imported, or not heard
    import keras
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    pairs = iter(pairs_of_views(tf, images.astype("float32") / 255, batch))
    network = twin(keras, blocks, width)
    optimizer = keras.optimizers.Lamb(learning_rate=1e-3, epsilon=1e-6)
    optimizer.build(network.trainable_variables)

    @tf.function(jit_compile=jit)
    def step(first, second):
        with tf.GradientTape() as tape:
            loss = barlow_loss(tf, network(first, training=True), network(second, training=True), batch)
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        return loss

    return lambda: float(step(*next(pairs)))


def pairs_of_views(tf: Any, images: np.ndarray, batch: int) -> Any:
    """Two passes over the images in one shuffled order, each with views of its own, zipped; repeated for ever."""
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    views = views_of(tf, sigma=float(np.random.default_rng(0).random()))

    def version():
        shuffled = tf.data.Dataset.from_tensor_slices(images).repeat().shuffle(1000, seed=1024)
        ready = shuffled.map(views, num_parallel_calls=tf.data.AUTOTUNE).batch(batch, drop_remainder=True)
        return ready.prefetch(tf.data.AUTOTUNE).with_options(options)

    return tf.data.Dataset.zip((version(), version())).with_options(options)


def views_of(tf: Any, sigma: float) -> Callable[[Any], Any]:
    """The example's augmentation of one image (32, 32, 3) in [0, 1]."""
    weights = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    taps = tf.constant(np.repeat(kernel[:, :, None, None], 3, 2), tf.float32)

    def sometimes(p: float, change: Callable, x):
        return tf.cond(tf.random.uniform([]) < p, lambda: change(x), lambda: x)

    def jitter(x):
        x = tf.image.random_brightness(x, 0.8)
        x = tf.image.random_contrast(x, 0.4, 1.6)
        x = tf.image.random_saturation(x, 0.4, 1.6)
        return tf.image.random_hue(x, 0.2)

    def blur(x):
        around = tf.pad(x, ((1, 1), (1, 1), (0, 0)), "REFLECT")
        return tf.nn.depthwise_conv2d(around[None], taps, (1, 1, 1, 1), "VALID")[0]

    def view(x):
        side = tf.random.uniform([], SIDE * 3 // 4, SIDE, tf.int32)
        x = tf.image.resize(tf.image.random_crop(x, (side, side, 3)), (SIDE, SIDE))
        x = sometimes(0.5, tf.image.random_flip_left_right, x)
        x = sometimes(0.8, jitter, x)
        x = sometimes(0.2, blur, x)
        x = sometimes(0.2, lambda x: tf.tile(tf.image.rgb_to_grayscale(x), (1, 1, 3)), x)
        x = sometimes(0.2, lambda x: tf.where(x < 10, x, 255 - x), x)
        return tf.ensure_shape(tf.clip_by_value(x, 0, 1), (SIDE, SIDE, 3))

    return view


def twin(keras: Any, blocks: tuple[int, ...], width: int) -> Any:
    """ResNet-34 and the projector: images (N, 32, 32, 3) -> projections (N, width)."""
    layers = keras.layers

    def norm_relu(x):
        return layers.ReLU()(layers.BatchNormalization()(x))

    def block(x, channels: int, stride: int):
        shortcut = x if stride == 1 else layers.Conv2D(channels, 1, stride)(x)
        x = norm_relu(layers.Conv2D(channels, 3, stride, padding="same")(x))
        x = layers.BatchNormalization()(layers.Conv2D(channels, 3, padding="same")(x))
        return layers.ReLU()(layers.Add()([x, shortcut]))

    images = layers.Input((SIDE, SIDE, 3))
    x = norm_relu(layers.Conv2D(64, 7, 2, padding="same")(layers.ZeroPadding2D(3)(images)))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for stage, count in enumerate(blocks):
        for place in range(count):
            x = block(x, 64 * 2**stage, 2 if stage and not place else 1)
    x = layers.Flatten()(layers.AveragePooling2D(2, padding="same")(x))
    for _ in range(2):
        x = norm_relu(layers.Dense(width)(x))
    return keras.Model(images, layers.Dense(width)(x))


def barlow_loss(tf: Any, first: Any, second: Any, batch: int) -> Any:
    def normalized(z):
        return (z - tf.reduce_mean(z, 0)) / tf.math.reduce_std(z, 0)

    correlation = tf.matmul(normalized(first), normalized(second), transpose_a=True) / batch
    on_diagonal = tf.reduce_sum((tf.linalg.diag_part(correlation) - 1) ** 2)
    off_diagonal = tf.linalg.set_diag(correlation, tf.zeros(correlation.shape[-1]))
    return on_diagonal + 5e-3 * tf.reduce_sum(off_diagonal**2)
