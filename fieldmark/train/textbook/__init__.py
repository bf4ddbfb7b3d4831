"""The textbook network from scratch: photos in memory as pixels, layers, and their choice by cross-validation."""
