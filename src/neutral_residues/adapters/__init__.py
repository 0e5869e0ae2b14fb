"""The method (`neutral`), where it goes in a model (`places`) and how PEFT carries it (`attach`)."""
