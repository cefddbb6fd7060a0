package main

type statusCmd struct{}

func (c *statusCmd) Run(g *globals) error { panic("unwritten") }
