"""The engine: from an order to slots that are filled in that order."""
