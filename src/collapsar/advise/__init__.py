"""What to change so that no class is lost: mitigations, each solved again and priced."""
