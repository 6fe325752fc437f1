"""Matching"""
