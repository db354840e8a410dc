"""stub"""
import click
@click.command
def upload() -> None:
    """x"""
