"""What the report writes about the protocols of the two Keras examples: title and description."""

KERAS_PROTOCOL_TEXTS = {
    "linear-keras": (
        "linear-keras",
        "One linear layer on the frozen projector's output, as Keras' Barlow Twins example.",
    ),
    "linear-keras-embedding": ("linear-keras-embedding", "The same layer on the encoder's embeddings."),
    "linear-keras-simsiam": (
        "linear-keras-simsiam",
        "One linear layer is trained on flips through the frozen encoder, as Keras' SimSiam example.",
    ),
}
