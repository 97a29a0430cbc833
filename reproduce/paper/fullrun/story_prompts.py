"""The prompts for Story Cloze of promptsource (Apache-2.0) that are its original task: before the story, after it."""

STORY_PROMPTS = (
    ("", "\n\nWhat is a possible continuation for the story given the following options ?\n- "),
    (
        "Read the following story :\n\n",
        "\n\nChoose a possible ending for the previous story from the following options: \n- ",
    ),
    ("Yesterday, I watched a movie. These plots happened :\n\n", "\n\nWhat happens next ?\n\n- "),
    (
        "What is a possible continuation for the following story ? \n\n",
        "\n\nChoose from the following options:\n- ",
    ),
    (
        "I read a the following novel:\n\n",
        "\n\nWhat do you think is the most probably ending ? You can choose from the following options :\n\n- ",
    ),
)
