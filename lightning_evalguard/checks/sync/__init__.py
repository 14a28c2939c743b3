"""Where does the host wait for the device?"""
